from skipway.cli import main

main()
