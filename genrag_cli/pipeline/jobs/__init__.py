"""Texts for schedulers and workflow managers, made from one command line of generag. None of them is started here."""
