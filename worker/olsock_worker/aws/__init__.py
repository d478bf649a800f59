"""AWS Lambda's REST API on the worker's port.

`control` finds the operation, `functions`, `versions` and `invocations` carry it out on the catalog, `parameters` are what is
sent, `shapes` what is answered, `names` and `errors` the words of both.
"""
