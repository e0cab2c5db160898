"""What can be rented where. Clouds do not know each other; nothing above `providers` names one."""
