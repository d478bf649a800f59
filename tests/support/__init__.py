"""Small named modules that tests share."""
