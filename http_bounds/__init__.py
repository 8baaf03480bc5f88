"""Bounds of the HTTP servers of both services: time, size, number, rate, host names and encryption.

They hold before anybody knows who the caller is. This package knows neither service.
"""
