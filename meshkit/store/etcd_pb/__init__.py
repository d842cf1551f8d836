"""Generated from etcd_wire.proto by `make proto`; never edited."""
