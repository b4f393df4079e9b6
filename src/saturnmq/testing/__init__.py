"""What tests of servers and of applications need; ships to users."""
