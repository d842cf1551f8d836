"""The spool: a cluster's own log on local disk, for standbys that history has left behind."""
