"""What harms is in nested.py, which the parent has imported already: here it begins anew, in the child."""

import nested

nested.main()
