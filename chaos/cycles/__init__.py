"""Whole regions lost and won back, cycle after cycle, on one long-lived sandbox."""
