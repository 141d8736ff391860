
/*
 * The kernel keeps books of each page of its memory, 16 MiB for each GiB, and fills them in at its start. Pages that
 * nobody has asked for need none: they are added in pieces, once the others are nearly used up.
 */
#define AT_ONCE (256UL << 20)
#define PIECE (64UL << 20)
#define NEARLY (16UL << 20)

unsigned long later_pfn = ULONG_MAX, later_pages;

static void __init keep_for_later(void)
{
	unsigned long end = PFN_DOWN(memblock_end_of_DRAM());
	unsigned long taken = memblock_reserved_size() + end * sizeof(struct page);
	unsigned long pfn = ALIGN(PFN_UP(taken + AT_ONCE), pageblock_nr_pages);

	if (pfn < end) {
		later_pfn = pfn;
		later_pages = end - pfn;
	}
}

/* All that is free at the start, but the pages for later, which count for who asks how many there are. */
static void __init free_at_start(void)
{
	phys_addr_t later = PFN_PHYS(later_pfn);

	if (later_pages)
		memblock_remove(later, PFN_PHYS(later_pages));
	memblock_free_all();
	if (later_pages)
		memblock_add(later, PFN_PHYS(later_pages));
	totalram_pages_add(later_pages);
}

void add_later_pages(struct zone *zone, int order)
{
	unsigned long enough = high_wmark_pages(zone) + PFN_DOWN(NEARLY);
	unsigned long flags, pfn, end;

	if (zone_watermark_ok(zone, order, enough, zone_idx(zone), 0))
		return;
	local_irq_save(flags);
	pfn = later_pfn;
	end = pfn + min(later_pages, PFN_DOWN(PIECE));
	later_pfn = end;
	later_pages -= end - pfn;
	local_irq_restore(flags);
	atomic_long_add(end - pfn, &zone->managed_pages);
	for (; pfn < end; pfn++) {
		struct page *page = pfn_to_page(pfn);

		memset(page, 0, sizeof(*page));
		set_page_links(page, zone_idx(zone), zone_to_nid(zone), pfn);
		init_page_count(page);
		atomic_set(&page->_mapcount, -1);
		INIT_LIST_HEAD(&page->lru);
		if (IS_ALIGNED(pfn, pageblock_nr_pages))
			set_pageblock_migratetype(page, MIGRATE_MOVABLE);
		__free_page(page);
	}
}

void __init mem_init(void)
