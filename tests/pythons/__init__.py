"""The wheel on every Python that is here: installed from the index with each extra, used, checked, removed.

Not part of the tests, since it downloads what scaler depends on. Needs the standard library only, so that it also runs
where nothing of this project is installed, with a wheel that was built elsewhere.
"""
