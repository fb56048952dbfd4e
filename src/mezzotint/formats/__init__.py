"""What is on disk: checkpoint folders, weights, tokenizers, scheduler files, pictures with their recipes.

One file, one format; each reads strictly, writes whole or not at all, and fails in one line that names the file.
"""
