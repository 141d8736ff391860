
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>

/* The guest's memory is a file of the host's: where it is free there need be nothing in the file. */
static int give_back(struct page_reporting_dev_info *device, struct scatterlist *list, unsigned int count)
{
	struct scatterlist *part;
	unsigned int i;

	for_each_sg(list, part, count, i) {
		int err = os_drop_memory(sg_virt(part), part->length);

		if (err)
			return err;
	}
	return 0;
}

/* from 256 KiB on: a call of the host for each piece */
static struct page_reporting_dev_info giving_back = { .report = give_back, .order = 6 };

static int __init start_giving_back(void)
{
	return page_reporting_register(&giving_back);
}
late_initcall(start_giving_back);
