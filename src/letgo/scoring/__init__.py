"""The engine that scores and generates: many requests in few forward passes, finished work kept through a kill."""
