"""A server around programs: ``create_app`` is a Starlette application, ``Client`` talks to it.

app.py        the application and its routes
bodies.py     what a request's body says, and how an answer is written
batching.py   requests grouped, run in turn, answered as rows
models.py     models and their versions: loaded, replaced, unloaded
errors.py     the one shape of an error
settings.py   every setting, with its default
"""
