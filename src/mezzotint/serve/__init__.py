"""The service: what a small company puts behind its product, and one person opens in a browser.

    HTTP (native.py, openai.py, a1111.py) -> service.py -> queue.py -> engine.py -> lane.py -> net

A request is settled and written down (store.py) before it is accepted; one thread per running picture walks its
sampler, and one lane computes for them all. Start reading at `service.py`.
"""
