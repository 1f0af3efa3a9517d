"""Stable Cascade's room: how its weights become stages, tables and a card, and where they are published."""
