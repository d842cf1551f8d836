"""Moves records between regions and obeys commands; decides nothing about authority."""
