"""Families of constraints that generated instructions may draw from, beside IFEval's: a module each."""
