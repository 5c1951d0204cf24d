"""The page's server (extra `web`): checks on requests, recordings, conversations, and the routes."""
