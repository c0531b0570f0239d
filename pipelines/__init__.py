"""The campaign's DAG, its profiles, and the command line that compiles and runs it."""
