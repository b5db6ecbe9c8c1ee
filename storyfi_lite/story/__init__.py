"""Keeps stories as files for people, between the stages of writing; reads them again; shows them as Markdown or as a page."""
