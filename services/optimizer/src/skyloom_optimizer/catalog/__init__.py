"""Offers, prices and places as columns: a container file, its builder and its reader."""
