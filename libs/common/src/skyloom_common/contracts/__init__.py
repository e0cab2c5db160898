"""What crosses a process: frozen dataclasses, one module per subject. Pure standard library; runs on Python 3.9.

Requests are decoded strictly (unknown fields refused), responses and events leniently.
"""
