"""Stories as files for people: kept between the stages of writing, read again by other commands, shown as Markdown or as a page."""
