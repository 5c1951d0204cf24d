"""The page's server: who may ask (guard), what is served (shelf), and the routes (app). Needs the extra `web`."""
