"""The whole mesh in one process, in virtual time, with every fault drawn from one seed."""
