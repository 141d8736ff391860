
/*
 * The kernel and the programs of the guest are processes of the host that take turns. On two processors each turn has to
 * wake the other one, which takes longer than most turns do. So all stay on the processor that the kernel is on while
 * there is work. Every tenth of a second the kernel sleeps for a moment, for the host to choose a processor once more;
 * where none was free, all are left to the host until the next time.
 */
#define ANY (-1)
#define MOST 1024
#define LOOK_AGAIN_NS 100000000LL
#define CROWDED_NS 2000000LL
#define KNOWN 1024

static unsigned long everywhere[MOST / (8 * sizeof(unsigned long))];
static int everywhere_size;
static int processor = ANY;
static long long look_again;
static struct {
	int pid, processor;
} kept[KNOWN];

static long keep_on(int pid, int where)
{
	unsigned long one[MOST / (8 * sizeof(unsigned long))] = { 0 };

	if (where == ANY)
		return syscall(__NR_sched_setaffinity, pid, everywhere_size, everywhere);
	one[where / (8 * sizeof(one[0]))] = 1UL << where % (8 * sizeof(one[0]));
	return syscall(__NR_sched_setaffinity, pid, sizeof(one), one);
}

static void stay_here(void)
{
	unsigned int here;

	if (syscall(__NR_getcpu, &here, NULL, NULL) == 0 && here < MOST && keep_on(0, here) == 0)
		processor = here;
}

/* Where the kernel goes on after it had nothing to do, is for the host to choose. */
void leave_processor(void)
{
	if (processor != ANY && keep_on(0, ANY) < 0) {
		/* none of those that it began with is left to it */
		memset(everywhere, 0xff, sizeof(everywhere));
		everywhere_size = sizeof(everywhere);
		keep_on(0, ANY);
	}
	processor = ANY;
	look_again = 0;
}

static void keep_together(int pid)
{
	struct timespec moment = { 0, 1 };
	long long now = os_nsecs(), begin = now;

	if (everywhere_size == 0)
		everywhere_size = syscall(__NR_sched_getaffinity, 0, sizeof(everywhere), everywhere);
	if (everywhere_size < 0)
		return;
	if (now > look_again) {
		if (look_again != 0) {
			leave_processor();
			nanosleep(&moment, NULL);
			now = os_nsecs();
		}
		look_again = now + LOOK_AGAIN_NS;
		if (now - begin < CROWDED_NS)
			stay_here();
	}
	if (kept[pid % KNOWN].pid != pid || kept[pid % KNOWN].processor != processor) {
		keep_on(pid, processor);
		kept[pid % KNOWN].pid = pid;
		kept[pid % KNOWN].processor = processor;
	}
}

void userspace(struct uml_pt_regs *regs, unsigned long *aux_fp_regs)
