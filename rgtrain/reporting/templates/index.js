for (const table of document.querySelectorAll("table")) makeSortable(table);
