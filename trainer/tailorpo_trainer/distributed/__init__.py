"""The processes of one run: how they meet, who watches over them, and how they are asked to stop."""
