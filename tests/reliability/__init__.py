# SPDX-License-Identifier: Apache-2.0
"""Drivers that try to lose work, to fool the project or to stop it; each writes a JSON report of what it found."""
