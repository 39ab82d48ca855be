"""The leaderboard: a static site made from records alone.

``build`` checks the records and writes the site, ``serve`` shows it, ``submit`` prepares a contribution. Records come
from strangers: ``safe`` says what of them reaches a page or a file name.
"""
