"""Websockets: `WS /gpt-socket/<personality>`.

A connection that was upgraded leaves gunicorn's threads: one thread of the worker, the switchboard's, reads all of
them, and a thread of its own runs each answer. So an idle socket costs a few kilobytes, and none takes a thread from
others.
"""
