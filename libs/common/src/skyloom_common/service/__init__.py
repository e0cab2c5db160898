"""The service kit: settings, auth, the app every service starts from, and how it is served.

It knows no service.
"""
