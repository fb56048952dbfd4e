"""WordNet's files with six nouns, written by hand in their own format (wndb(5WN))."""

DATA = """\
  1 This is a licence, indented by two blanks.
00000100 03 n 01 thing 0 000 | what there is
00000200 05 n 01 animal 0 001 @ 00000100 n 0000 | a living thing that moves
00000300 05 n 02 dog 0 domestic_dog 0 002 @ 00000200 n 0000 ~ 00000400 n 0000 | man's friend; "it barks"
00000400 05 n 02 hound 0 doggy 0 002 #m 00000200 n 0000 @ 00000300 n 0000 | a dog that hunts
00000500 06 n 01 jumbo_jet 0 000 | a large aeroplane
00000600 06 n 01 sedan 0 000 | a closed car
"""
NOUNS = """\
  1 This is a licence.
doggy n 1 1 @ 1 0 00000400
hound n 1 2 @ ~ 1 1 00000400
dog n 2 2 @ ~ 2 1 00000300 00000200
jumbo_jet n 1 0 1 0 00000500
sedan n 1 0 1 0 00000600
a.b. n 1 0 1 0 00000600
"""


def write_wordnet(folder):
    folder.mkdir()
    (folder / "data.noun").write_text(DATA)
    (folder / "index.noun").write_text(NOUNS)
    (folder / "index.adj").write_text("  1 licence\nhound a 1 0 1 0 00000700\n")
