"""What installs a bundle; it runs on the target as root, with the standard library alone."""

# What the installer is made of: sent to a target as one.
MODULES = ("__init__.py", "checks.py", "errors.py", "installer.py", "layout.py", "service.py",
           "trial.py", "units.py")
