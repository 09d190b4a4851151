"""The pages of the site, kept in the database."""
