"""Helpers without knowledge of the method: text, commands, intervals, tables and figures."""
