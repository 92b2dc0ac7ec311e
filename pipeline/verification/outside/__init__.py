"""For what other people bring: their files, their tests, their continuous integration."""
