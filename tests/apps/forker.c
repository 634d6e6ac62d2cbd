/* Forks; parent and child each append their own counter to a file through the shell. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int count(const char *who)
{
	char command[64];
	for (long number = 0;; number++) {
		snprintf(command, sizeof command, "echo %s %ld >>/root/1", who, number);
		if (system(command))
			return 1;
		usleep(50000);
	}
}

int main(void)
{
	return count(fork() == 0 ? "child" : "parent");
}
