"""A site of two machines, the application and its database, each in a container, joined by a virtual cable."""
