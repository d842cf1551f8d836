"""Who may act: leases and their deadlines, elections and terms, the chain behind write permits.

Also the SDK with which applications write under a permit (`fencing.write_gate`). It decides
nothing about where authority goes; that is the coordinator's.
"""
