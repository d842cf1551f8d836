"""The store port, its transactions as data, and its adapters (memory, etcd)."""
