# SPDX-License-Identifier: Apache-2.0
"""Jobs after their launch: records, states, logs, cancelling and cleaning up."""
