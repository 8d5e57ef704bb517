"""Preference data: loading, checking, editing, noise, cleaning and tokenising."""
