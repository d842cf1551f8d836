"""The bytes between two replicators: protobuf, with zstd where it helps."""
