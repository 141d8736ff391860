
/* Serial lines are read byte by byte; one read(2) a byte is all that they would do. One line is read ahead at a time. */
static int read_ahead(int fd, void *byte)
{
	static char buffer[4096];
	static int owner, next, end;

	if (next == end) {
		int n = read(fd, buffer, sizeof(buffer));

		if (n <= 0)
			return n;
		owner = fd;
		next = 0;
		end = n;
	}
	if (owner != fd)
		return read(fd, byte, 1);
	*(char *)byte = buffer[next++];
	return 1;
}

int generic_read(int fd,