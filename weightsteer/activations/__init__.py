"""Directions in activation space."""
