"""The kernel: the words, ports and records every part of MeshKit shares.

It holds no policy, decides nothing and imports no other package of ours.
"""

__version__ = "0.1.0"
