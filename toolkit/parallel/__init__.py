"""Ranks: process groups, collectives, ZeRO. No maths."""
