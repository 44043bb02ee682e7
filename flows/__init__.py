"""Prefect flows, one file per thing a person asks for, and the command line."""
