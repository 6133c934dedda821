# SPDX-License-Identifier: Apache-2.0
"""Reports: one HTML file for each training and evaluation, and a page that compares runs. Reads result files only."""
